"""What a method has to keep to, checked as early as it can be told: a mistake here is its author's to mend."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from w2svd_bench.errors import BenchError, unknown_name
from w2svd_bench.method import GENERATOR, TEACHER, Method, RoleSpec, Update, average_of
from w2svd_bench.types import Loss


def check_roles(method: Method, specs: Mapping[str, RoleSpec]) -> None:
    """Raises `BenchError` for roles without a generator that learns, or with a name that is the harness's own."""
    generator = specs.get(GENERATOR)
    if generator is None or generator.optimizer is None or generator.weights == "head":
        raise BenchError(
            f"{method.name} has no role {GENERATOR!r} that learns",
            f"{method.name}.roles gives {', '.join(map(repr, specs))}",
            f"a method that is trained has a role GENERATOR, {GENERATOR!r}, with weights of its own: it gets exported",
        )
    own = {TEACHER, *(average_of(name) for name, spec in specs.items() if spec.ema is not None)}
    taken = sorted(own & specs.keys())
    if taken:
        raise BenchError(
            f"{method.name} can't have a role {taken[0]!r}",
            "the frozen teacher, and the averages of roles with an `ema`, are there by that name already",
            f"give it another name in {method.name}.roles",
        )


def check_update(method: Method, update: Update, learn: Collection[str]) -> None:
    """Raises `BenchError` for an update of a role that has nothing to learn, or that there is not."""
    if update.role not in learn:
        error = unknown_name("role", update.role, learn)
        raise BenchError(f"{method.name}.updates names {error.what}", f"of those that learn {error.why}", error.cure)


def check_loss(method: Method, role: str, loss: object) -> None:
    """Raises `BenchError` for what can't be minimised."""
    if not isinstance(loss, Loss):
        why = f"it is a {type(loss).__name__}"
    elif loss.total.ndim:
        why = f"its total has the shape {tuple(loss.total.shape)}"
    elif not loss.total.requires_grad:
        why = f"its total has no gradient: no weight of {role!r} entered it, or it was detached"
    else:
        wide = [name for name, value in loss.logs.items() if getattr(value, "numel", lambda: 1)() != 1]
        if not wide:
            return
        why = f"{wide[0]!r} of its logs is not one number"
    raise BenchError(
        f"the loss of role {role!r} of {method.name} can't be used",
        why,
        "a loss returns Loss(total, logs): a scalar that depends on the role's weights, and numbers for the log",
    )
