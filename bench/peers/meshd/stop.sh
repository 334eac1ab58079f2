#!/bin/bash
. "$LAB/tools/lib.sh"
stop_all
