#!/bin/sh
# Folder order of includes, lengths of files and functions: scripts/check_includes.py.
exec scripts/check_includes.sh
