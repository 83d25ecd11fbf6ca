"""What scripts/benchmark.py measures, a file a subject: steps, epoch, inference, process, records, growth; page.py writes it down."""
