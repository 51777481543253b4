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
from typing import TYPE_CHECKING, Any

from shards.common.errors import InputError
from train.run_directory import SWANLAB_NAME
from train.settings import TrackingSettings

if TYPE_CHECKING:
    from train.sampling import Continuation

ANSWER_SECONDS = 10
SILENT_SECONDS = 30  # SwanLab takes a run that is silent for longer than a minute as dead


def check_tracking(settings: TrackingSettings) -> None:
    """Raise `InputError` for a mode that was asked for by name and can't be had. Imports nothing."""
    mode = settings.mode
    if mode not in ("auto", "disabled") and importlib.util.find_spec("swanlab") is None:
        raise InputError(
            f"tracking: mode: {mode}: swanlab is not installed; install it (pip install swanlab) or set auto"
        )
    if mode == "local" and importlib.util.find_spec("swanboard") is None:
        raise InputError("tracking: mode: local: needs the dashboard: pip install 'swanlab[dashboard]'; or set offline")


class Tracking:
    """The tracking of one run: `start`, then the callbacks work by themselves, `log_samples`, `finish`."""

    def __init__(self, settings: TrackingSettings, run: Path, run_id: str) -> None:
        self._settings, self._directory, self._id = settings, run / SWANLAB_NAME, run_id
        self._name = settings.name or run.resolve().name
        self._swanlab: Any = None
        self.mode = "disabled"

    def start(self, trainer: Any, config: dict[str, Any]) -> list[str]:
        """Begin to track `trainer`; returns a line each that the user should see."""
        if self._settings.mode == "disabled":
            return []
        if importlib.util.find_spec("swanlab") is None:
            return ["SwanLab is not installed: this run is recorded in metrics.jsonl only"]
        os.environ.setdefault("SWANLAB_INTERACTIVE", "false")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import swanlab
        self._swanlab = swanlab
        wanted, notices = self._settings.mode, []
        if wanted in ("auto", "online"):
            key, host = api_key_and_host()
            is_reached = bool(key) and can_connect(host)
            if key and not is_reached:
                notices.append(f"SwanLab: {host} can't be reached: going on offline")
            elif not key and wanted == "online":
                notices.append("SwanLab: not logged in (`swanlab login` does that): going on offline")
            wanted = "online" if is_reached else "offline"
        for mode in dict.fromkeys((wanted, "offline")):
            try:
                callback = self._start(mode, trainer)
                break
            except Exception as error:  # whatever SwanLab raises must not stop a training
                reason = (str(error) or type(error).__name__).splitlines()[0]
                if mode != "offline":
                    notices.append(f"SwanLab {mode} can't be used ({reason}): going on offline")
        else:
            self._swanlab = None
            return [*notices, f"SwanLab can't be used ({reason}): this run is recorded in metrics.jsonl only"]
        self.mode = mode
        trainer.add_callback(callback)
        trainer.add_callback(_heartbeat(swanlab.log))
        callback.update_config(config)
        return notices

    def _start(self, mode: str, trainer: Any) -> Any:
        from swanlab.integration.transformers import SwanLabCallback

        if self._swanlab.has_run():  # of an attempt that failed
            self._swanlab.finish()
        callback = SwanLabCallback()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._swanlab.init(
            project=self._settings.project,
            workspace=self._settings.workspace,
            name=self._name,
            log_dir=str(self._directory),
            mode=mode,
            id=self._id,
            resume="allow",
            callbacks=[callback],
        )
        callback.setup(trainer.args, trainer.state, trainer.model)
        return callback

    def log_samples(self, samples: Sequence[Continuation], step: int) -> None:
        """Log what the model wrote, with the prompts as captions."""
        if self._swanlab is not None and samples:
            texts = [self._swanlab.Text(sample.text, caption=sample.prompt) for sample in samples]
            with contextlib.suppress(Exception):
                self._swanlab.log({"samples": texts}, step=step)

    def finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the tracking, after success or (given the exception's type) not."""
        if self._swanlab is not None:
            with contextlib.suppress(Exception):
                if self._swanlab.has_run():  # at Ctrl-C SwanLab ends it by itself
                    self._swanlab.finish(state="success" if kind is None else "aborted")


def _heartbeat(log: Any) -> Any:
    """A callback that logs something now and then in a long evaluation."""
    from transformers import TrainerCallback

    class Heartbeat(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self._logged = time.monotonic()

        def on_log(self, *_: Any, **__: Any) -> None:
            self._logged = time.monotonic()

        def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if time.monotonic() - self._logged > SILENT_SECONDS:
                self._logged = time.monotonic()
                with contextlib.suppress(Exception):
                    log({"eval/running": 1}, step=state.global_step)

    return Heartbeat()


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
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True
