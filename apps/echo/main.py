# SPDX-License-Identifier: Apache-2.0
"""The app folder that MONAI Label is pointed at; everything lives in ``echo_plugin``."""

from echo_plugin.host.app import EchoApp

__all__ = ["EchoApp"]
