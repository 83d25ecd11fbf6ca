"""What scripts/benchmark.py measures, a file a subject: steps, epoch, inference, process, growth; page.py writes it down."""
