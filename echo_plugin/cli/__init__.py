# SPDX-License-Identifier: Apache-2.0
"""The command ``monailabel-echo``: one file for each group of verbs, each handing over to a room below."""
