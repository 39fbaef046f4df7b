"""What every stage needs: files, dvc.lock, locks, and strict settings."""
