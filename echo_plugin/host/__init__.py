# SPDX-License-Identifier: Apache-2.0
"""The MONAI Label app: the only room, with its routes and tasks, that imports monailabel."""
