"""Testing by comparison: the generator of operations, the lockstep of two engines and its judge are three things."""
