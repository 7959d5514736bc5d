"""What PSD gains over a baseline at its own best, on real photographs: the protocol of docs/results.md."""
