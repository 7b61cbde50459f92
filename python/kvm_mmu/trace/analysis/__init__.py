"""What a trace says: summary, the work of the MMU, stalls, exports, lines explained."""
