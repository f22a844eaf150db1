"""The recommendations of a log as a Minari dataset, for libraries of offline RL."""

from __future__ import annotations

import shutil
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from recenv.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from experiments.logs.collect import Step


class Exporter:
    """Keeps every step of the written sessions in memory, and writes them in the end.

    An episode is a session, in the order of the log: observations (T + 1, S), actions (T,),
    rewards, and ``infos`` with the propensity, the event and the shopper of each step.

    Args:
        dataset: its id, as in "recsys/full/ppo-v0".
        keywords: those of the environment, which Minari's users can recover.
        policy: what the recommender is called.
        overwrite: whether a dataset of that id may go.

    Raises:
        MissingExtra: Minari is not installed.
        UsageError: the id makes no sense, or is taken.
    """

    def __init__(
        self,
        dataset: str,
        keywords: dict[str, Any],
        policy: str,
        overwrite: bool = False,
    ):
        for module in ("minari", "h5py"):
            try:
                import_module(module)
            except ImportError:
                raise MissingExtra("minari=...", module, "logs") from None
        self._dataset, self._keywords, self._policy = dataset, keywords, policy
        self._overwrite = overwrite
        self._noted: list[tuple[np.ndarray, ...]] = []
        self._final: dict[int, np.ndarray] = {}
        self._place = _place_of(dataset)
        if self._place.exists() and not overwrite:
            raise UsageError(
                f"there is a Minari dataset {dataset} already: pass if_exists=overwrite or another "
                "version"
            )

    def add(self, step: Step) -> None:
        """Note a step."""
        order = (step.session_n, step.step_n)
        told = (step.observation_nS, step.item_n, step.reward_n)
        ends = (step.terminated_n, step.truncated_n)
        also = (step.propensity_n, step.event_n, step.shopper_n)
        self._noted.append((*order, *told, *ends, *also))
        for place in np.flatnonzero(step.over_n):
            self._final[int(step.session_n[place])] = step.final_n[place]

    def finish(self) -> None:
        """Write the dataset."""
        import minari

        if self._overwrite and self._place.exists():
            shutil.rmtree(self._place)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it asks for an author's address, among others
                minari.create_dataset_from_buffers(
                    self._dataset,
                    self._episodes(),
                    env=gym.make("Recsys-v0", **self._keywords),
                    algorithm_name=self._policy,
                    description="Sessions of recenv's Recsys-v0; infos hold true propensities.",
                    requirements=["recenv"],
                )
        except BaseException:
            shutil.rmtree(self._place, ignore_errors=True)  # no half of a dataset
            raise

    def _episodes(self) -> list[Any]:
        from minari.data_collector import EpisodeBuffer

        columns = [np.concatenate(chunks) for chunks in zip(*self._noted, strict=True)]
        order = np.lexsort((columns[1], columns[0]))
        first = np.flatnonzero(columns[1][order] == 0)[1:]
        session, *_ = parts = [np.split(column[order], first) for column in columns]
        _, _, seen, items, rewards, terminations, truncations, propensity, event, shopper = parts
        return [
            EpisodeBuffer(
                id=number,
                observations=np.concatenate([seen[number], self._final[int(own[0])][None]]),
                actions=items[number],
                rewards=rewards[number],
                terminations=terminations[number],
                truncations=truncations[number],
                infos={
                    "propensity": propensity[number],
                    "event": event[number],
                    "shopper": shopper[number],
                },
            )
            for number, own in enumerate(session)
        ]


def _place_of(dataset: str) -> Path:
    """Where Minari keeps a dataset."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        parse_dataset_id(dataset)
    except (TypeError, ValueError):  # the former where the version is missing
        raise UsageError(
            f"minari={dataset!r} is no id of a dataset: write it as in recsys/full/ppo-v0"
        ) from None
    return Path(get_dataset_path(dataset))
