"""Memory, time, money and disk of an approach as ranges with parts and origin. Pure arithmetic, no torch."""
