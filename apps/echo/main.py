# SPDX-License-Identifier: Apache-2.0
"""The app folder that MONAI Label is pointed at; everything lives in ``echo_plugin``."""

from echo_plugin.host.launcher import restart_with_sleeping_threads

restart_with_sleeping_threads()  # before anything else is loaded a first time

from echo_plugin.host.app import EchoApp  # noqa: E402

__all__ = ["EchoApp"]
