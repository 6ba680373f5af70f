"""Triton's interpreter, without what it does over and over, and with a rule of its compiler that it does not know.

At every launch, and at every call of a function from a kernel, it looks through all names of its language for those to
replace, though which names they are does not change. And it computes sums and products of indices twice, to see whether
they overflow, which those of tests do not. Together these took half of the time of the tests of kernels.
"""

import dataclasses
import functools
import inspect
from types import ModuleType

from triton import language
from triton.runtime import interpreter


@functools.cache
def _names(place: ModuleType | type) -> list[str]:
    """Names of the parts of the language in a module or class, before any is replaced."""
    return [name for name, member in inspect.getmembers(place) if language.core.is_builtin(member)]


def _replace(place: ModuleType | type, builder: object, scope: object) -> None:
    for name in _names(place):
        member = getattr(place, name)
        if language.core.is_builtin(member):
            interpreter._patch_attr(place, name, member, builder, scope)


def make_quick() -> None:
    """Leave that out from now on."""
    interpreter._patch_builtin = _replace
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


FEWEST_TERMS = 16
"""Terms of a product of matrices that Triton compiles for a GPU."""


def refuse_short_products() -> None:
    """From now on fail, as the compiler does, where a kernel multiplies matrices over fewer terms than it takes."""
    multiply = interpreter.InterpreterBuilder.create_dot

    @functools.wraps(multiply)
    def checked(self, a, b, *rest):
        assert a.data.shape[-1] >= FEWEST_TERMS, f"a product over {a.data.shape[-1]} terms, which no GPU compiles"
        return multiply(self, a, b, *rest)

    interpreter.InterpreterBuilder.create_dot = checked
