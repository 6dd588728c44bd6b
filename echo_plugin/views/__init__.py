# SPDX-License-Identifier: Apache-2.0
"""Views: sampling a cine, the answer to it, and its measurement."""
