"""From a configuration to environments and agents: the one way in which both are built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from agents.base import Agent
from agents.retrieval import by_towers
from experiments.cli import hydras_line
from recenv.errors import MissingExtra, UsageError, unknown
from recenv.gate import GateShop
from recenv.retrieve import CONTENT, RecsysRetrieveVectorEnv, Retriever, RetrieveShop
from recenv.shop import Shop
from recenv.vector_env import RecsysVectorEnv

CONF = Path(conf.__file__).parent
IDS = (Shop.id, GateShop.id, RetrieveShop.id)  # of environments


MakeEnv = Callable[[dict[str, Any], int], RecsysVectorEnv]


def make_env(env: dict[str, Any], num_envs: int) -> RecsysVectorEnv:
    """The vector environment of a configuration's ``env``.

    Raises:
        UsageError: a keyword is unknown or wrong, or the world cannot be had.
    """
    keywords = dict(env)
    name = keywords.pop("id", None) or Shop.id
    if name not in IDS:
        raise unknown("env.id", name, IDS)
    if name == RetrieveShop.id:
        keywords["retriever"] = retriever(keywords)
        return RecsysRetrieveVectorEnv(num_envs, **keywords)
    vector_env = gym.make_vec(name, num_envs=num_envs, **keywords)
    assert isinstance(vector_env, RecsysVectorEnv)
    return vector_env


def retriever(env: dict[str, Any]) -> str | Retriever:
    """The retriever of a configuration's ``env``: by its name, or by a scorer's towers.

    Raises:
        UsageError: it is the path of no scorer, or of one that cannot retrieve here.
    """
    name = env.get("retriever") or CONTENT
    if name == CONTENT or not isinstance(name, str):
        return name
    own = ("id", "candidates", "retriever", "refresh", "components", "autoreset_mode", "reveal")
    plain = {key: value for key, value in env.items() if key not in own}
    return by_towers(Path(name), make_env(plain, 1))


def agent_class(agent: dict[str, Any]) -> type[Agent]:
    """The class that a configuration's ``agent`` names in ``_target_``."""
    target = agent.get("_target_")
    if not isinstance(target, str):
        raise UsageError("the agent's configuration has no _target_, the path of its class")
    try:
        cls = get_class(target)
    except (ImportError, ValueError) as error:
        if isinstance(error.__cause__, MissingExtra):
            raise error.__cause__ from None
        raise UsageError(f"agent class {target} cannot be imported: {error}") from None
    if not issubclass(cls, Agent):
        raise UsageError(f"{target} is no agent: it does not derive from agents.base.Agent")
    return cls


def agent_settings(agent: dict[str, Any]) -> dict[str, Any]:
    """The keywords for the agent's constructor."""
    return {key: value for key, value in agent.items() if key not in ("_target_", "name")}


def make_agent(
    agent: dict[str, Any],
    env: dict[str, Any],
    seed: int,
    device: str,
    make: MakeEnv = make_env,
) -> Agent:
    """The agent of a configuration, bound to the environment that it will learn in.

    Args:
        make: makes that environment.

    Raises:
        UsageError: a setting is unknown or makes no sense.
    """
    cls = agent_class(agent)
    try:
        built = cls(seed=seed, device=device, **agent_settings(agent))
        built.bind(make(env, built.num_envs))
    except UsageError:
        raise
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"agent {agent.get('name', cls.name)}: {error}") from None
    return built


def load_agent(
    config: dict[str, Any], directory: Path, env: RecsysVectorEnv, device: str = "auto"
) -> Agent:
    """The trained agent of a run, bound to ``env``."""
    return agent_class(config["agent"]).load(directory, env, device)


def configuration(words: list[str], runs_dir: Path | None = None) -> dict[str, Any]:
    """What ``experiments.run`` takes, composed from conf/ and words as on a command line.

    Raises:
        UsageError: there is no such key or file, or a word cannot be read.
    """
    overrides = [quoted(word) for word in words]
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            composed = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise hydras_line(error) from None
    assert isinstance(composed, dict)
    if runs_dir is not None:
        composed["runs_dir"] = str(runs_dir)
    for key in ("if_exists", "resume"):
        composed.pop(key)
    return {str(key): value for key, value in composed.items()}


def quoted(word: str) -> str:
    """``key=value`` for Hydra, whose grammar wants quotes where a value (a run's path) has a =."""
    key, _, value = word.partition("=")
    plain = "=" in value and not set(value) & set("\"'[]{}()$,")
    return f'{key}="{value}"' if plain else word


def group_defaults(group: str, name: str) -> dict[str, Any]:
    """What conf/<group>/<name>.yaml says, without its own defaults list; {} if there is none."""
    path = CONF / group / f"{name}.yaml"
    if not path.is_file():
        return {}
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    values.pop("defaults", None)
    return {str(key): value for key, value in values.items()}
