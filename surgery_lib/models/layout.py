"""Where every architecture keeps the rows that surgery edits: a table of data and one reader.

A row is a vector as long as the hidden state: a row of `gate_proj`, which decides how far one
intermediate unit opens, or, for the matrices that write to the residual stream (`down`, `o`), a
column. Rows are numbered globally, block after block, as one ranking over all layers needs
(Model Surgery, section 3.2).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgery_lib.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where one kind of block keeps one matrix.

    `path` is the parameter's name inside the block, with `{expert}` where experts are separate
    modules; `part` says which equal share of a fused tensor's rows it is, and of how many.
    """

    path: str
    part: tuple[int, int] = (0, 1)
    transposed: bool = False  # GPT-2's Conv1D stores (in, out)
    stacked: bool = False  # all experts in one tensor (experts, rows, width)
    writes: bool = False  # the matrix writes to the residual stream: its columns are the rows

    @property
    def of_experts(self) -> bool:
        """Whether a block has several of it, one an expert."""
        return self.stacked or "{expert}" in self.path

    def expert_paths(self, block: nn.Module) -> Iterator[tuple[int | None, str]]:
        """The (expert, path) pairs that exist in this block."""
        if "{expert}" not in self.path:
            if has_parameter(block, self.path):
                yield None, self.path
            return
        expert = 0
        while has_parameter(block, path := self.path.format(expert=expert)):
            yield expert, path
            expert += 1


@dataclass(frozen=True)
class Mlp:
    """One way in which a block holds its MLP; `up` is None where nothing is gated."""

    name: str
    gate: Place
    up: Place | None
    down: Place


def _gated(prefix: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Mlp:
    gate, up, down = (f"{prefix}.{name}.weight" for name in names)
    return Mlp(gate, Place(gate), Place(up), Place(down, writes=True))


def _plain(gate: str, down: str, transposed: bool = False) -> Mlp:
    written = Place(down, transposed=transposed, writes=True)
    return Mlp(gate, Place(gate, transposed=transposed), None, written)


# A block may hold several of these (a dense MLP, shared experts, experts): all are read, in order.
# Files are read by the same table as memory. Transformers 5 fuses the experts of Mixtral, Qwen3-MoE
# and others while it loads them, so these have two lines: fused in memory, one by one on disk.
MLPS: tuple[Mlp, ...] = (
    _gated("mlp"),  # Llama, Mistral, Qwen2, Qwen3, Gemma, OLMo
    Mlp(  # Phi-3, GLM-4
        "mlp.gate_up_proj.weight",
        gate=Place("mlp.gate_up_proj.weight", part=(0, 2)),
        up=Place("mlp.gate_up_proj.weight", part=(1, 2)),
        down=Place("mlp.down_proj.weight", writes=True),
    ),
    _gated("mlp.shared_expert"),  # Qwen2-MoE
    _gated("mlp.shared_experts"),  # DeepSeek
    Mlp(  # Mixtral, Qwen3-MoE and other mixtures in memory, since transformers 5
        "mlp.experts.gate_up_proj",
        gate=Place("mlp.experts.gate_up_proj", part=(0, 2), stacked=True),
        up=Place("mlp.experts.gate_up_proj", part=(1, 2), stacked=True),
        down=Place("mlp.experts.down_proj", stacked=True, writes=True),
    ),
    _gated("mlp.experts.{expert}"),  # Qwen3-MoE and others on disk
    _gated("block_sparse_moe.experts.{expert}", ("w1", "w3", "w2")),  # Mixtral on disk
    _plain("mlp.c_fc.weight", "mlp.c_proj.weight", transposed=True),  # GPT-2
    _plain("mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"),  # GPT-NeoX, Pythia
)

# The matrices of Table 11 that are not in the MLP.
ATTENTION: dict[str, Place] = {
    "q": Place("self_attn.q_proj.weight"),
    "k": Place("self_attn.k_proj.weight"),
    "v": Place("self_attn.v_proj.weight"),
    "o": Place("self_attn.o_proj.weight", writes=True),
}

MATRICES = ("gate", "up", "down", *ATTENTION)

# Where a base model keeps its decoder blocks.
BLOCK_LISTS = ("layers", "h", "decoder.layers", "language_model.layers")


@dataclass(frozen=True)
class Rows:
    """The rows of one matrix of one block (or one expert).

    `weight` is a (rows, width) view of the parameter: what is written to it is written to the
    model. `parameter` is the name in the model's state dict, `place` how the rows lie in it.
    """

    block: int
    expert: int | None
    parameter: str
    weight: Tensor
    place: Place


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model. UserError where none are found."""
    base = getattr(model, "base_model", model)
    for path in BLOCK_LISTS:
        found = _get(base, path)
        if isinstance(found, nn.ModuleList):
            return found
    raise UserError(
        f"{type(model).__name__}: no decoder blocks found (looked for {', '.join(BLOCK_LISTS)} in "
        f"its base model); add where it keeps them to surgery_lib/models/layout.py"
    )


def hidden_width(model: nn.Module) -> int:
    """Length of a hidden state."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    config = getattr(model, "config", None)
    text_config = config.get_text_config() if config is not None else None
    return int(getattr(text_config, "hidden_size", 0) or embeddings.weight.shape[1])


def weight_rows(model: nn.Module, matrix: str = "gate", *, editable: bool = True) -> list[Rows]:
    """All rows of one kind of matrix, in global order: by block, then by expert.

    `editable=False` accepts weights that are not in memory, for their shapes and names.

    Raises:
        UserError: An unknown matrix, for an architecture that the table does not hold (naming what
            was looked for), and for weights that are quantized or not in memory.
    """
    check_matrix(matrix)
    width = hidden_width(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[Rows] = []
    for index, block in enumerate(blocks(model)):
        before = len(found)
        for place in _places(block, matrix):
            for expert, path in place.expert_paths(block):
                parameter = block.get_parameter(path)
                name = names.get(id(parameter), path)
                if editable:
                    _check_editable(name, parameter)
                if place.stacked:
                    _check_stacking(name, block.get_submodule(path.rpartition(".")[0]))
                found.extend(
                    Rows(index, expert if not place.stacked else stacked, name, view, place)
                    for stacked, view in enumerate(place_views(place, parameter.data, width, name))
                )
        if len(found) == before:
            raise UserError(
                f"{type(model).__name__}: block {index} has no {matrix} matrix that this package "
                f"knows (looked for {looked_for(matrix)}); add it to surgery_lib/models/layout.py"
            )
    return found


def mlp_of(block: nn.Module) -> Mlp:
    """The first form of MLP that a block holds. UserError where it holds none."""
    for mlp in MLPS:
        if next(mlp.gate.expert_paths(block), None) is not None:
            return mlp
    raise UserError(f"{type(block).__name__}: no MLP found (looked for {looked_for('gate')})")


def is_mixture(model: nn.Module) -> bool:
    """Whether any block holds experts that tokens are routed to, beside a shared one or not."""
    routed = [form.gate for form in MLPS if form.gate.of_experts]
    return any(any(gate.expert_paths(block)) for block in blocks(model) for gate in routed)


def mlp_module(block: nn.Module) -> nn.Module:
    """The MLP of a block, whatever its form."""
    return block.get_submodule(mlp_of(block).gate.path.split(".")[0])


def place_views(place: Place, tensor: Tensor, width: int, name: str) -> list[Tensor]:
    """The (rows, width) views of a stored tensor: one, or one an expert where they are stacked."""
    if tensor.dim() != (3 if place.stacked else 2):
        raise UserError(f"{name} has shape {tuple(tensor.shape)}, which its layout does not know")
    views = []
    for one in tensor if place.stacked else [tensor]:
        rows = one.t() if place.transposed else one
        share, shares = place.part
        size = rows.shape[0] // shares
        rows = rows[share * size : (share + 1) * size]
        rows = rows.t() if place.writes else rows
        if rows.shape[1] != width:
            raise UserError(
                f"{name} has shape {tuple(tensor.shape)}, whose rows are not {width} long as the "
                "hidden state is; add its architecture to surgery_lib/models/layout.py"
            )
        views.append(rows)
    return views


def total_rows(model: nn.Module, matrix: str = "gate") -> int:
    """How many rows there are over all blocks."""
    return sum(len(rows.weight) for rows in weight_rows(model, matrix))


def row_blocks(model: nn.Module, matrix: str = "gate") -> Tensor:
    """The block that each row belongs to: (total_rows,) int64."""
    found = weight_rows(model, matrix)
    return torch.cat([torch.full((len(rows.weight),), rows.block) for rows in found])


def split_by_matrix(sizes: Sequence[int], indices: Tensor) -> Iterator[tuple[int, Tensor, slice]]:
    """Split sorted global row indices by matrix.

    Yields (matrix number, local row indices, the slice of `indices` that they come from), for the
    matrices that hold any.
    """
    ends = torch.tensor(list(sizes)).cumsum(0)
    cuts = [0, *torch.searchsorted(indices, ends).tolist()]
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        if stop > start:
            yield number, indices[start:stop] - (ends[number] - sizes[number]), slice(start, stop)


def has_parameter(block: nn.Module, path: str) -> bool:
    """Whether the block holds a parameter of that name."""
    return isinstance(_get(block, path), nn.Parameter)


def check_matrix(matrix: str) -> None:
    """UserError for the name of a matrix that is not in the table."""
    if matrix not in MATRICES:
        raise UserError(f"matrix {matrix!r} is unknown; choose one of {', '.join(MATRICES)}")


def places(matrix: str) -> list[Place]:
    """Everywhere in a block that the table knows a matrix, in the order in which they are read."""
    if matrix in ATTENTION:
        return [ATTENTION[matrix]]
    found = [place for mlp in MLPS if (place := getattr(mlp, matrix)) is not None]
    return list(dict.fromkeys(found))  # several forms of MLP share a down projection


def looked_for(matrix: str) -> str:
    """The names under which a matrix was looked for, for an error's text."""
    return ", ".join(place.path for place in places(matrix))


def _places(block: nn.Module, matrix: str) -> list[Place]:
    if matrix in ATTENTION:
        return [ATTENTION[matrix]]
    places = [
        getattr(mlp, matrix) for mlp in MLPS if next(mlp.gate.expert_paths(block), None) is not None
    ]
    return [place for place in places if place is not None]


def _get(module: object, path: str) -> object:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _check_editable(name: str, parameter: Tensor) -> None:
    if parameter.is_meta:
        raise UserError(
            f"{name} is not in memory (offloaded); edit the checkpoint on disk instead, with "
            "surgery_lib.checkpoint.operate"
        )
    if not parameter.is_floating_point() or parameter.element_size() < 2:
        raise UserError(
            f"{name} is quantized ({parameter.dtype}); load the model unquantized to edit it"
        )


def _check_stacking(name: str, experts: nn.Module) -> None:
    # What transformers says of experts that it stacks: GPT-OSS interleaves and transposes them.
    if getattr(experts, "is_transposed", False) or not getattr(experts, "is_concatenated", True):
        raise UserError(
            f"{name} holds its gate rows transposed or interleaved, which this package does not "
            "know (looked for gate rows above up rows); add it to surgery_lib/models/layout.py"
        )
