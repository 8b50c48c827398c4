"""The thinker, batched: token ids, some of whose rows an encoder made, -> rows, logits."""

from __future__ import annotations

from torch import Tensor, nn

from lluda.config.decoder import DecoderConfig
from lluda.config.omni import OmniConfig
from training.twin.audio_encoder import AudioEncoder
from training.twin.decoder import TokenDecoder


class Thinker(nn.Module):
    """The decoder with its head and the audio tower; the vision tower is not trained."""

    def __init__(self, config: DecoderConfig, omni: OmniConfig) -> None:
        super().__init__()
        self.model = TokenDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.audio_tower = AudioEncoder(omni.audio)

    def embed(self, ids: Tensor, heard: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """Rows of int64 ``ids [batch, rows]``; where ``places [batch, rows]`` (int64) is not negative, that row of
        ``heard [batch, tokens, hidden]``."""
        rows = self.model.embed_tokens(ids).float()
        if heard is None or places is None:
            return rows
        index = places.clamp(min=0)[..., None].expand(-1, -1, rows.shape[2])
        return rows.where((places < 0)[..., None], heard.float().gather(1, index))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows -> logits ``[batch, rows, vocab]`` and the routers' loss."""
        x, loss = self.model(rows)
        return self.lm_head(self.model.norm(x)), loss
