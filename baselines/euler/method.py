"""Euler: the teacher itself, sampled in few steps. Nothing is trained."""

from w2svd_bench.flow import schedule
from w2svd_bench.method import Method
from w2svd_bench.samplers import Sampler


class Euler(Method):
    """The baseline every distilled generator has to beat at its own number of steps."""

    name = "euler"

    def sampler(self, steps: int) -> Sampler:
        return Sampler("ode", tuple(schedule(steps, self.shift).tolist()))
