# SPDX-License-Identifier: Apache-2.0
"""What the app offers: predictions, trainers, strategies, batch inference."""
