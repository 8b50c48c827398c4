"""The talker and its code predictor, batched: every frame of an example at once, from its true codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lluda.config.decoder import DecoderConfig
from lluda.config.talker import TalkerConfig
from training.twin.decoder import DecoderStack


class ResizeProjection(nn.Module):
    """``linear_fc2(silu(linear_fc1(x)))``."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.linear_fc1, self.linear_fc2 = nn.Linear(inputs, inner), nn.Linear(inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` -> ``[..., outputs]`` float32."""
        return self.linear_fc2(F.silu(self.linear_fc1(x))).float()


class _CodecDecoder(DecoderStack):
    """The talker's stack over its table of codes and control ids."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.codec_embedding = nn.Embedding(config.vocab_size, config.hidden_size)


class _PredictorDecoder(DecoderStack):
    """The predictor's stack, with a table for each codebook after the first."""

    def __init__(self, config: DecoderConfig, tables: int) -> None:
        super().__init__(config)
        self.codec_embedding = nn.ModuleList(nn.Embedding(config.vocab_size, config.hidden_size) for _ in range(tables))


class CodePredictor(nn.Module):
    """Codes 1 to groups - 1 of a frame from the talker's row and the codes before."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        decoder, passes = config.code_predictor, config.num_code_groups - 1
        self.model = _PredictorDecoder(decoder, passes)
        self.lm_head = nn.ModuleList(
            nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False) for _ in range(passes)
        )

    def tables(self, codes: Tensor) -> Tensor:
        """The rows of codes 1, 2, … of frames: int64 ``[frames, n]`` -> ``[frames, n, hidden]``."""
        used = list(self.model.codec_embedding)[: codes.shape[1]]
        return torch.stack([table(codes[:, index]) for index, table in enumerate(used)], dim=1)

    def forward(self, hidden: Tensor, first: Tensor, rows: Tensor) -> Tensor:
        """The talker's row after its norm ``[frames, hidden]``, the talker's embedding of code 0 ``[frames, hidden]``
        and ``tables`` of codes 1 to groups - 2 -> logits ``[frames, groups - 1, vocab]``."""
        x = torch.cat((hidden[:, None].float(), first[:, None].float(), rows.float()), dim=1)
        x = self.model.norm(self.model(x)[0])[:, 1:]
        return torch.stack([head(x[:, index]) for index, head in enumerate(self.lm_head)], dim=1)

    def likeliest(self, hidden: Tensor, first: Tensor) -> Tensor:
        """The likeliest codes 1 to groups - 1, each after the ones chosen before, from ``hidden`` and ``first`` as
        above: int64 ``[frames, groups - 1]``."""
        tables, chosen = self.model.codec_embedding, []
        rows = hidden.new_zeros(len(hidden), len(tables) - 1, hidden.shape[1])
        for index, table in enumerate(tables):
            chosen.append(self(hidden, first, rows)[:, index].argmax(-1))
            if index < rows.shape[1]:
                rows[:, index] = table(chosen[-1])
        return torch.stack(chosen, dim=1)


class Talker(nn.Module):
    """A mixture-of-experts stack over rows of text and codes."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        decoder, inner = config.decoder, config.decoder.intermediate_size
        self.config = config
        self.model = _CodecDecoder(decoder)
        self.codec_head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)
        wide = config.thinker_hidden_size
        self.text_projection, self.hidden_projection = (
            ResizeProjection(wide, inner, decoder.hidden_size) for _ in range(2)
        )
        self.code_predictor = CodePredictor(config)

    def frame_rows(self, codes: Tensor) -> Tensor:
        """What frames add to their rows: int64 ``[frames, groups]`` -> the sum of their embeddings
        ``[frames, hidden]`` float32."""
        return self.model.codec_embedding(codes[:, 0]).float() + self.code_predictor.tables(codes[:, 1:]).float().sum(1)

    def forward(self, rows: Tensor, ahead: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Rows ``[batch, rows, hidden]``, the first ``ahead [batch]`` of them padding -> rows after the final norm,
        logits of codebook 0 and control ids ``[batch, rows, vocab]``, the routers' loss."""
        x, loss = self.model(rows, ahead=ahead)
        hidden = self.model.norm(x)
        return hidden, self.codec_head(hidden), loss
