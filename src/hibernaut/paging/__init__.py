"""What the CPU sees: entry bits, one-address lookup, whole-table scan, the TLB."""
