"""The sections of a spec about training on large text: where it comes from, how it is mixed, what is refused.

Owns their fields, limits and one-line meanings. Must not know readers, shards or steps (`engine.corpus`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from engine.jobs.spec_section import Section

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,39}$"
"""Of sources, suites and the like: a word that fits into a column and a file name."""
HUB = "hub:"
"""Begins the path of a source on the hub: "hub:owner/name"."""


class SourceSection(Section, frozen=True, kw_only=True):
    """A domain of text to train on, read as a stream and tokenised once. With sources, [data] train is not read."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN, description="The domain, as curves and reports call it.")]
    path: Annotated[
        str,
        Meta(
            min_length=1,
            description='A file, a folder, a pattern ("text/*.jsonl.gz") or "hub:owner/name"; .parquet, or text and '
            ".jsonl, these also as .gz, .zst, .xz or .bz2.",
        ),
    ]
    weight: Annotated[
        float, Meta(ge=0.0, description="Share of the tokens trained on, beside the other sources' weights.")
    ] = 1.0
    field: Annotated[str, Meta(min_length=1, description="Key or column that holds a document's text.")] = "text"
    config: Annotated[str, Meta(description='Hub only: the data set\'s configuration; "" for its only one.')] = ""
    split: Annotated[str, Meta(description="Hub only: which part.")] = "train"
    max_tokens: Annotated[
        int, Meta(ge=0, description="Read no more than this many tokens; 0 reads what the job needs.")
    ] = 0


class StreamSection(Section, frozen=True, kw_only=True):
    """How the text of [[sources]] becomes training data."""

    shuffle_documents: Annotated[
        int, Meta(ge=0, le=10_000_000, description="Documents shuffled together; 0 keeps the order of the files.")
    ] = 10_000
    deduplicate: Annotated[
        str,
        Meta(
            pattern="^(exact|near|off)$",
            description="exact drops documents that were read before; near also those that differ little (MinHash).",
        ),
    ] = "exact"
    decontaminate: Annotated[
        bool, Meta(description="Drop documents that share a long run of words with what the job is evaluated on.")
    ] = True
    ngram_words: Annotated[int, Meta(ge=5, le=50, description="Words in a run that counts as shared.")] = 13
    bad_input: Annotated[
        str,
        Meta(
            pattern="^(skip|refuse)$",
            description="What is unreadable is counted and located; skip then goes on, refuse ends the run.",
        ),
    ] = "skip"
    bad_share: Annotated[
        float, Meta(ge=0.0, le=1.0, description="With skip: the share of unreadable documents that ends the run too.")
    ] = 0.05
    longest_document_mb: Annotated[
        int, Meta(ge=1, le=4096, description="A longer line or document is unreadable; keeps memory bounded.")
    ] = 64
    text_kb: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 20,
            description="Text files are cut at blank lines into documents of about so many KB; 0 keeps each whole.",
        ),
    ] = 64
    heldout_share: Annotated[
        float, Meta(ge=0.0, lt=0.5, description="Documents of every source set aside for its evaluation, by hash.")
    ] = 0.005
    heldout_tokens: Annotated[
        int, Meta(ge=0, description="At most so many held-out tokens per source are evaluated.")
    ] = 65_536
    shard_tokens: Annotated[int, Meta(ge=1024, le=1 << 32, description="Tokens per cached file.")] = 64 * 1024 * 1024
    cache: Annotated[
        str, Meta(description='Folder of the tokenised text; "" keeps it in the program\'s own, shared by all runs.')
    ] = ""
    record_documents: Annotated[
        bool, Meta(description="Write documents.jsonl: which documents every step was made of.")
    ] = False
