"""One run directory: launching a search in it, locks, status, receipts, benchmarks."""
