"""Published numbers, and the ledger that sets them beside ours."""
