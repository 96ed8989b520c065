"""Operations in two forms: one node of a compiled graph, and a plain function in eager mode.

torch.library makes an operation opaque to torch.compile, gives it a fake form, and takes some 25 us
a call for that. In eager mode nobody looks, and the same body runs as a plain function, or where a
gradient is asked for as a :class:`torch.autograd.Function`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_PLAIN = (Tensor, torch.nn.Parameter)


class CustomOperation:
    """What :func:`custom_operation` makes of a function.

    Attributes:
        body: the function.
        library: torch.library's form of it.
    """

    def __init__(
        self,
        name: str,
        body: Callable[..., Any],
        mutates_args: Sequence[str] = (),
        schema: str | None = None,
        tags: Sequence[torch.Tag] | None = None,
    ):
        self.body = body
        self.library = torch.library.custom_op(
            name, body, mutates_args=mutates_args, schema=schema, tags=tags
        )
        self.register_fake = self.library.register_fake
        self._written = [list(signature(body).parameters).index(one) for one in mutates_args]
        self._function: Any = None

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None:
        """Give both forms a gradient, as :meth:`torch.library.CustomOpDef.register_autograd`."""
        self.library.register_autograd(backward, setup_context=setup_context)

        # With a setup_context of its own, PyTorch would look at the signature in each call: 20 us.
        def forward(ctx: Any, *args: Any) -> Any:
            output = self.body(*args)
            setup_context(ctx, args, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._function = type(self.body.__name__, (torch.autograd.Function,), members)

    def __call__(self, *args: Any) -> Any:
        if _is_watched(args):
            return self.library(*args)
        if torch.is_grad_enabled():
            if self._function is not None:
                return self._function.apply(*args)
            if any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
                return self.library(*args)  # whose result raises an error if it is differentiated
        for place in self._written:
            torch.autograd.graph.increment_version(args[place])
        return self.body(*args)


def custom_operation(
    name: str,
    *,
    mutates_args: Sequence[str] = (),
    schema: str | None = None,
    tags: Sequence[torch.Tag] | None = None,
) -> Callable[[Callable[..., Any]], CustomOperation]:
    """A decorator in place of :func:`torch.library.custom_op`, with the same arguments.

    Limits:
        Arguments are given by place. The body neither returns an argument nor a view of one.
    """
    return lambda body: CustomOperation(name, body, mutates_args, schema, tags)


def _is_watched(args: Sequence[Any]) -> bool:
    """Whether more than the result counts: to torch.compile, a dispatch mode, a fake tensor."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return True
    if torch._C._are_functorch_transforms_active():
        return True
    return any(isinstance(arg, Tensor) and _needs_library(arg) for arg in args)


def _needs_library(tensor: Tensor) -> bool:
    """Whether no body can read the tensor: one without values, or a whole batch of them."""
    return type(tensor) not in _PLAIN or tensor.is_meta or is_batched(tensor)


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for many, as gradients of ``autograd.grad(is_grads_batched=True)``."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)
