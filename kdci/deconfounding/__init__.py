"""KDCI and what it is measured against: dictionary, compensation, strata, known shifts."""
