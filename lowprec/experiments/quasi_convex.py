"""Being written by the helper for data, multinomial and EXP-A (12:20); see brief."""
