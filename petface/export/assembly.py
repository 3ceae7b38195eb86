"""A checkpoint's pieces put together: pixels in front of its network, the guard behind it."""

from __future__ import annotations

from functools import cached_property

from onnx import ModelProto

from petface.export import graphs
from petface.export.parity import TorchAnswers
from petface.export.sources import Source
from petface.inference.onnx_models import Exported, OnnxNetwork, session_of
from petface.models.network import Network


class Assembly:
    """What turns the network of a checkpoint, in float or quantised, into a whole model.

    `source.model` is used up: its BatchNorm is folded.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.heads = source, list(source.heads)
        rule = source.preprocessing
        torch_network = Network.for_inference(source.model, rule, "cpu", "fp32")
        self.ask = TorchAnswers(torch_network, source.guard)
        self.network = graphs.network_graph(
            source.model,
            rule.size_px,
            self.heads,
            with_means=source.guard is not None,
        )

    @cached_property
    def _guard(self) -> ModelProto | None:
        return None if self.source.guard is None else graphs.guard_graph(self.source.guard)

    def plain(self, network: ModelProto) -> ModelProto:
        """Give a network with the guard behind it, where there is one: for prepared floats."""
        return network if self._guard is None else graphs.joined(network, self._guard)

    def whole(self, network: ModelProto) -> ModelProto:
        """Give the model that takes pixels of any size."""
        prepared = graphs.preprocessing_graph(self.source.preprocessing)
        return graphs.joined(prepared, self.plain(network))

    def opened(self, network: ModelProto) -> OnnxNetwork:
        """Open a model that is not written yet, as it will be opened from its file."""
        source = self.source
        about = Exported(
            source.path,
            "",
            source.species,
            source.heads,
            {},
            {},
            source.preprocessing,
            source.backbone,
            source.guard_threshold,
            "",
            "",
        )
        content = self.whole(network).SerializeToString()
        return OnnxNetwork(about, session_of(content, name=f"the export of {source.path}"))
