"""Experiments on chats: their arguments and runs, results and tables of them, stores, sweeps and searches of ranges."""
