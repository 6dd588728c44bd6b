# SPDX-License-Identifier: Apache-2.0
"""Networks, their losses, and the files they are published in."""
