"""One harness for every figure: verify first, then time, beside a baseline and the machine's limit.

A figure is a :class:`~bitnet_torch.bench.row.Row`. It exists only if

1. the candidate's result was compared with what it must be, on the very inputs, before the
   clock was started (:mod:`~bitnet_torch.bench.verify`); a mismatch ends the run;
2. candidate and baseline were timed in turn, in one run (:mod:`~bitnet_torch.bench.timing`), and
   their ratio comes with an interval (:mod:`~bitnet_torch.bench.pairs`);
3. the limit of the machine that it is held against was measured in the same run
   (:mod:`~bitnet_torch.bench.limits`).

``bitnet bench`` is the way in; ``docs/benchmarks.md`` says how to read what it prints.
"""
