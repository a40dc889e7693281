"""BLIP-2's head for image-text matching, over a query that SPRC composed: the score of one candidate."""

from __future__ import annotations

from torch import Tensor, nn

from cirrus_export.heads.qformer import QFormer


class Matching(nn.Module):
    """Scores a gallery image as the answer to a query (arXiv 2301.12597, section 3.2).

    The two-class head reads every learned query, and the logits are averaged. The score is the logit of "they match"
    less that of "they do not": its sigmoid is BLIP-2's probability, which would round to 1 for several good candidates.
    """

    def __init__(self, qformer: QFormer, itm_head: nn.Linear) -> None:
        super().__init__()
        self.qformer = qformer
        self.itm_head = itm_head

    def forward(self, image_tokens: Tensor, condition: Tensor, token_ids: Tensor) -> Tensor:
        """Return scores [B, 1] of image tokens [B, N, W] for prompts [B, V, H] and texts [B, T]."""
        logits = self.itm_head(self.qformer.matched(image_tokens, condition, token_ids)).mean(dim=1)
        score: Tensor = logits[:, 1:] - logits[:, :1]
        return score
