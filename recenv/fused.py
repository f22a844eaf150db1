"""Functions of tensors as fused kernels, called straight.

``torch.compile`` looks at its arguments at each call, which takes as long as a step of a
thousand shoppers. Where sizes never change, and nothing has a gradient, there is nothing to
look at.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from array_api_compat import torch as xp

from recenv.errors import UsageError
from recenv.tree import Tensors, leaves, maker, taker

Tensor = torch.Tensor
# Sizes are fixed and every index is in range: nothing need be checked. What a function reads is
# handed to its kernels, which therefore must not keep it to themselves ("freezing").
ALWAYS = {
    "size_asserts": False,
    "alignment_asserts": False,
    "assert_indirect_indexing": False,
    "freezing": False,
}
# What calls the kernels is compiled too; tanh is made of exp (by itself it is a tenth of a step);
# a product and a sum are one instruction; and what is left of a row is done one by one, as some
# processors write parts of vectors slowly.
ON_CPU = {
    "cpp_wrapper": True,
    "cpp.use_decompose_tanh": True,
    "cpp.enable_floating_point_contract_flag": "fast",
    "cpp.enable_loop_tail_vec": False,
}


def fused(
    function: Callable[..., Any], arguments: tuple[Any, ...], device: torch.device
) -> Callable[..., Any]:
    """The same function, compiled for arguments such as these: of these sizes and strides.

    Arguments and results are trees of tensors (``recenv.tree``). What else the function reads
    is taken for constant (its tensors are read anew at each call), and nothing has a gradient.

    Raises:
        UsageError: no compiler is there, it fails, or it cannot write.
    """
    try:
        import_module("torch._inductor")  # which makes a directory
    except OSError as error:
        raise UsageError(
            "compile=True needs a directory that torch's compiler can write to: set "
            f"TORCHINDUCTOR_CACHE_DIR ({error})"
        ) from error
    from torch.fx.experimental.proxy_tensor import make_fx

    made: Callable[[Tensors], Any]

    def flat(*tensors: Tensor) -> list[Tensor]:
        nonlocal made
        results = function(*maker(arguments)(tensors))
        made = maker(results)
        return leaves(results)

    # Of copies: two arguments that are one tensor, as they may be in a first step, would be
    # taken for one ever after.
    examples = [tensor.clone() for tensor in leaves(arguments)]
    with torch.no_grad():
        graph = make_fx(flat)(*examples)
        read = [tensor for _, tensor in graph.named_buffers(remove_duplicate=False)]
        kernels = _kernels(graph, examples, len(read), device)

    take = taker(arguments)
    return lambda *arguments: made(kernels([*read, *take(arguments)]))


def _kernels(
    graph: torch.fx.GraphModule, examples: list[Any], num_read: int, device: torch.device
) -> Callable[[list[Tensor]], list[Tensor]]:
    """The kernels of a graph, of a list of what it reads and of its arguments.

    To call what autograd wraps around them takes half as long again.
    """
    # with them comes the whole of a compiler
    from torch._functorch import config as functorch
    from torch._inductor import standalone_compile
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.exc import InductorError

    kernels: Callable[[list[Tensor]], list[Tensor]]

    def kept(graph: Any, given: Any, **keywords: Any) -> Any:
        nonlocal kernels
        if len(given) != num_read + len(examples):
            raise RuntimeError("torch hands its kernels other tensors than are handed over here")
        kernels = compile_fx_inner(graph, given, **keywords)
        return kernels

    patches: dict[str, Any] = dict(ALWAYS)
    if device.type == "cpu":  # places for what each thread finds are counted beforehand
        patches |= ON_CPU | {"cpp.threads": torch.get_num_threads()}
    options = {"config_patches": patches, "inner_compile": kept}
    try:
        # from a cache, wrappers would come with kernels inside that nobody sees
        with functorch.patch(enable_autograd_cache=False):
            standalone_compile(
                graph, examples, dynamic_shapes="from_example_inputs", options=options
            )
    except (InductorError, OSError) as error:
        reason = str(error).partition("\n")[0]
        needed = "a C++ compiler" if device.type == "cpu" else "triton"
        raise UsageError(
            f"compile=True needs {needed} that works: install one, or leave compile out ({reason})"
        ) from error
    return kernels


def settled(tensor: Tensor) -> Tensor:
    """The same tensor, which kernels write down instead of working it out at each use.

    Worth it for what a whole row hangs on: otherwise it is worked out for each part of the row.
    (Of what ``as_strided`` looks at inductor needs a place in memory.)
    """
    return tensor.as_strided(tensor.shape, tensor.stride())


class Settling:
    """The array namespace of torch, in which ``take`` is made for kernels.

    Indices are settled where a whole row hangs on them, and all count from the front.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(xp, name)

    def take(self, table: Tensor, index: Tensor, axis: int | None = None) -> Tensor:
        """As ``take`` of the array API standard."""
        if table.ndim > 1 and axis != 0:
            return xp.take(table, index, axis=axis)
        if len(table) < 2**31:  # which take half the room
            index = index.to(torch.int32)
        return _rows(table, settled(index) if table.ndim > 1 else index)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table (F, ...) for an index (N,).

    Of ``table[index]`` kernels would look whether it counts from the end, in 64 bits.
    """
    found = torch.embedding(table.reshape(len(table), -1), index)
    return found.reshape(*index.shape, *table.shape[1:])


SETTLING = Settling()
