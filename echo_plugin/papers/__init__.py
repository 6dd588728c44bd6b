# SPDX-License-Identifier: Apache-2.0
"""The source papers' tables made again; loaded by the verbs that ask for it and by nothing else."""
