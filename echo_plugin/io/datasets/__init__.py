# SPDX-License-Identifier: Apache-2.0
"""Public data sets as they are handed out: one module for each layout, ``study_writer`` makes a study folder of them.

A reader yields ``SourceCine`` and ``LeftOut``, in an order that is always the same, and opens no picture. What it says
of layouts and columns comes from the data sets' own pages and loaders; what could not be checked there is said in the
notes of the import.
"""
