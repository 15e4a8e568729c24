"""Why a stage would run again, what follows from that, and what it will take."""
