"""Benchmarks: what things cost.

bench.py is the command `zoo bench`: one step of SVI, side by side with what a user would take
instead.  cases.py says what is timed, contenders.py who takes part, timing.py how; a contender is
a function `prepare(case)` that returns `steps(n)`, which takes n gradient steps and returns the
last loss.  iwae.py is a module to run.
"""
