"""Several processes as one job: how they meet, share steps and shards, and give signs of life.

Existing engines only: torchrun launches (`engine.jobs.crew`), torch's DistributedDataParallel or FSDP2 exchange,
torch.distributed.checkpoint writes shards. What is ours is that nothing else of the program has to know:

    rank 0, the leader                                  every other rank, a follower
    ──────────────────────────────────────────────      ──────────────────────────────────────────────
    finds the checkpoint, journals, measures            loads the same model and data
    go ─────────────────────── trainer.train() on all ranks, each its share of every step ──────────────────────
    end of a step: writes, evaluates, decides           waits; under FSDP2 it runs an empty forward pass for each
                                                        of the leader's, since layers are gathered from all ranks
    decision ───────────────── the same on all ranks: go on, save, stop ────────────────────────────────────────
    output, card; leaves                                leaves when the leader has left

- **transformers' Trainer is not told** of the other ranks: torchrun's variables are taken out of the environment before
  it looks. Each rank's Trainer turns the wheel for itself, and what ranks do together happens in `training_step`
  (`engine.distributed.parallel`). So saving, clipping and schedules are those of one process.
- **A step is divided by rows, never by meaning** (`engine.train.shares`): all ranks know the whole planned step and
  its number of trained tokens; the loss is the sum over all of them / that number. Every rank computes equally many
  micro-batches, so that collectives match; a rank without rows left computes one without trained tokens.
- **Only the leader decides.** Pause, stop, budget, early stopping and evaluation are its; ranks never look at control
  files or signals themselves, so they cannot come to different ends and wait for each other for ever.
- **Checkpoints**: under ddp the leader's alone, the same files as ever; under fsdp2 `sharded/`, written by all ranks.
  Both go on with any number of processes. FSDP2 keeps shards of 4-bit weights too.
- **Memory that runs out** cannot be caught on one rank while others wait in a collective: the rank says so and leaves,
  and all start again from the last checkpoint with smaller micro-batches, the same on every rank.

The run directory has to be on a file system that all machines share; ranks check that when they meet. Signs of life and
the words of a rank that gives up are files in it (`engine.jobs.ranks`), so that whoever is hung cannot keep them back.
"""
