# SPDX-License-Identifier: Apache-2.0
"""What an answer rests on: past cases kept level, cines compared, where the network looked."""
