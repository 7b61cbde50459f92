"""What an article would say, made by commands: the thread, its figures, the gallery and the demonstration."""
