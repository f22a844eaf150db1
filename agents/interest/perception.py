"""How an agent on stable-baselines3 reads behaviour: plainly, by an encoder, by a model of u."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.policies import BasePolicy

from agents.base import MANY
from agents.encoders import ENCODERS
from agents.interest.filter import FilterReader
from agents.interest.model import Design, InterestModel, make_model
from agents.interest.reading import EncoderExtractor, Reader, ReaderExtractor, behaviour_of
from recenv.errors import UsageError, unknown
from recenv.shop import Shop, as_number

BAYES = "bayes"


@dataclass(frozen=True)
class Perception:
    """The settings that say what stands between the observation and the policy.

    Attributes:
        encoder: mlp, cnn, gru, transformer, or None: observations as they are; bayes: a bound
            of what any of them could know, by a filter that knows the shop's true model.
        encoder_width: of the encoder's vector.
        interest: directory of a trained interest model.
        pretrain_steps: where there is none, the agent first plays so many environment steps
            at random and trains one on them; they count among the steps that it learns from.
        freeze_encoder: whether the interest model stays as it is (it then stands before the
            policy and carries its memory along), or is the policy's and learns on with it.

    Raises:
        UsageError: the settings make no sense together.
    """

    encoder: str | None = None
    encoder_width: int = 64
    interest: str | None = None
    pretrain_steps: int = 0
    freeze_encoder: bool = True

    def __post_init__(self) -> None:
        if self.encoder is not None and self.encoder not in (*ENCODERS, BAYES):
            raise unknown("agent.encoder", self.encoder, (*ENCODERS, BAYES))
        as_number("agent.encoder_width", self.encoder_width, 4, 65_536)
        as_number("agent.pretrain_steps", self.pretrain_steps, 0, MANY)
        if not isinstance(self.freeze_encoder, bool):
            raise UsageError(
                f"agent.freeze_encoder must be true or false, got {self.freeze_encoder!r}"
            )
        if self.interest is not None and not isinstance(self.interest, str):
            raise UsageError(f"agent.interest must be a directory, got {self.interest!r}")
        if self.pretrain_steps and self.encoder is None and self.interest is None:
            raise UsageError("agent.pretrain_steps trains an encoder: choose one with encoder=gru")
        if self.encoder == BAYES and (
            self.interest or self.pretrain_steps or not self.freeze_encoder
        ):
            raise UsageError(
                "agent.encoder=bayes knows the shop and learns nothing: leave out agent.interest, "
                "agent.pretrain_steps and agent.freeze_encoder"
            )

    @property
    def reads(self) -> bool:
        """Whether something reads for the agent, which then sees no window itself."""
        return self.interest is not None or self.pretrain_steps > 0 or self.encoder == BAYES

    @property
    def pretrains(self) -> bool:
        """Whether the agent has to make the model itself."""
        return self.interest is None and self.pretrain_steps > 0

    def reader(self, shop: Shop, seed: int, device: torch.device) -> Reader | FilterReader | None:
        """What reads for the agent in a shop; None where nothing does."""
        if not self.reads:
            return None
        if self.encoder == BAYES:
            return FilterReader(shop, seed)
        if self.interest is not None:
            model = InterestModel.load(Path(self.interest), device)
            if self.encoder not in (None, model.design.encoder):
                raise UsageError(
                    f"the interest model in {self.interest} is a {model.design.encoder}: "
                    f"leave out encoder={self.encoder}"
                )
        else:
            features_IF = behaviour_of(shop).features_IF
            model = make_model(self.design(shop), features_IF, seed).to(device)
        return Reader(model.requires_grad_(False).eval(), shop).to(device)

    def design(self, shop: Shop) -> Design:
        """Of the interest model that it makes."""
        assert self.encoder is not None
        # a GRU that is carried along remembers the session: it learns from whole ones
        whole = self.encoder == "gru" and self.freeze_encoder
        history = shop.horizon if whole else shop.settings.history
        return Design(
            encoder=self.encoder,
            history=history,
            width=self.encoder_width,
            words=behaviour_of(shop).words,
        )

    def extractor(self, shop: Shop, reader: Reader | FilterReader | None) -> dict[str, Any]:
        """Keywords of a policy of stable-baselines3 that reads by itself."""
        if reader is not None:
            if self.freeze_encoder:
                return {}
            cls: Any = ReaderExtractor
            keywords: dict[str, Any] = {"reader": reader}
        elif self.encoder is not None:
            cls = EncoderExtractor
            keywords = {"observer": behaviour_of(shop), "encoder": self.encoder}
            keywords["width"] = self.encoder_width
        else:
            return {}
        return {"features_extractor_class": cls, "features_extractor_kwargs": keywords}

    def settings(self) -> dict[str, Any]:
        """Those of the agent's; a model of u is kept beside what it learned."""
        kept = self.reads and self.encoder != BAYES
        return asdict(self) | {"interest": INTEREST if kept else None}


INTEREST = "."  # where the model of u lies inside a saved agent


def hand_over(reader: Reader, policy: BasePolicy) -> None:
    """Give the weights of a trained model of u to a policy that learns on with them."""
    for module in policy.modules():
        if isinstance(module, ReaderExtractor):
            module.reader.model.load_state_dict(reader.model.state_dict())
