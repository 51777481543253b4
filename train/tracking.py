"""SwanLab, so that it can neither ask, nor hang, nor stop a training.

SwanLab's own callback for transformers does the tracking. It is `online` when an API key is found, else `offline`,
and falls back to `offline` when the server can't be reached. Its files lie in `RUN/swanlab`; what was recorded offline
is sent later by `swanlab sync RUN/swanlab/run-…`. A run that is continued is the same run of SwanLab's: its id is in
`run.json`. Only the first process of a run tracks.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from train.run_directory import SWANLAB_NAME
from train.sampling import Continuation
from train.settings import TrackingSettings

ANSWER_SECONDS = 10
SILENT_SECONDS = 30  # SwanLab takes a run that is silent for longer than a minute as dead


class Tracking(TrainerCallback):  # type: ignore[misc]
    """The tracking of one run: `start`, then the callbacks work by themselves, `log_samples`, `finish`."""

    def __init__(self, settings: TrackingSettings, run: Path, run_id: str) -> None:
        self._settings, self._run, self._id = settings, run, run_id
        self._swanlab: Any = None  # the package, once it has started
        self._logged_at = time.monotonic()

    def start(self, trainer: Any, config: dict[str, Any]) -> list[str]:
        """Begin to track `trainer`; returns a line each that the user should see."""
        if self._settings.mode == "disabled":
            return []
        only_here = "this run is recorded in metrics.jsonl only"
        if importlib.util.find_spec("swanlab") is None:
            return [f"SwanLab is not installed: {only_here}"]
        os.environ.setdefault("SWANLAB_INTERACTIVE", "false")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import swanlab
        first_mode, notices = reachable_mode(self._settings.mode)
        for mode in dict.fromkeys((first_mode, "offline")):
            try:
                callback = self._start(swanlab, mode, trainer, config)
            except Exception as error:  # whatever SwanLab raises must not stop a training
                reason = (str(error) or type(error).__name__).splitlines()[0]
                instead = only_here if mode == "offline" else "going on offline"
                notices.append(f"SwanLab {mode} can't be used ({reason}): {instead}")
                continue
            self._swanlab = swanlab
            trainer.add_callback(callback)
            trainer.add_callback(self)
            break
        return notices

    def _start(self, swanlab: Any, mode: str, trainer: Any, config: dict[str, Any]) -> Any:
        """SwanLab's callback, of a run that was begun in this mode."""
        from swanlab.integration.transformers import SwanLabCallback

        if swanlab.has_run():  # of an attempt that failed
            swanlab.finish()
        callback, directory = SwanLabCallback(), self._run / SWANLAB_NAME
        directory.mkdir(parents=True, exist_ok=True)
        swanlab.init(
            project=self._settings.project,
            workspace=self._settings.workspace,
            name=self._settings.name or self._run.resolve().name,
            log_dir=str(directory),
            mode=mode,
            id=self._id,
            resume="allow",
            callbacks=[callback],
        )
        callback.setup(trainer.args, trainer.state, trainer.model)
        callback.update_config(config)
        return callback

    def on_log(self, *_: Any, **__: Any) -> None:
        self._logged_at = time.monotonic()

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Log something now and then in a long evaluation."""
        if time.monotonic() - self._logged_at > SILENT_SECONDS:
            self._logged_at = time.monotonic()
            self._log({"eval/running": 1}, state.global_step)

    def log_samples(self, samples: Sequence[Continuation], step: int) -> None:
        """Log what the model wrote, with the prompts as captions."""
        if self._swanlab is not None and samples:
            self._log({"samples": [self._swanlab.Text(one.text, caption=one.prompt) for one in samples]}, step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        with contextlib.suppress(Exception):
            self._swanlab.log(values, step=step)

    def finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the tracking, after success or (given the exception's type) not."""
        with contextlib.suppress(Exception):
            if self._swanlab is not None and self._swanlab.has_run():  # at Ctrl-C SwanLab ends it by itself
                self._swanlab.finish(state="success" if kind is None else "aborted")


def reachable_mode(mode: str) -> tuple[str, list[str]]:
    """The mode that can be had where `mode` was asked for, and a line for the user if that is another."""
    if mode not in ("auto", "online"):
        return mode, []
    key, host = api_key_and_host()
    if not key:
        notice = "SwanLab: not logged in (`swanlab login` does that): going on offline"
        return "offline", [notice] if mode == "online" else []
    return ("online", []) if can_connect(host) else ("offline", [f"SwanLab: {host} can't be reached: going on offline"])


def api_key_and_host() -> tuple[str | None, str]:
    """SwanLab's key and server, from the environment or an earlier `swanlab login`. Asks nobody."""
    from swanlab import Settings

    try:
        settings = Settings()
    except Exception:  # a damaged file of SwanLab's: as good as not logged in
        return None, ""
    return settings.api_key or None, settings.api_host


def can_connect(host: str) -> bool:
    """Whether the server at the URL `host` answers, whatever it answers. SwanLab itself would try for over a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(host, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return isinstance(error, urllib.error.HTTPError)
    return True
