# SPDX-License-Identifier: Apache-2.0
"""``python -m echo_plugin`` is ``monailabel-echo``."""

from echo_plugin.cli.main import main

main()
