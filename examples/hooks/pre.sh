#!/bin/sh
# The pre script that VMSnapshotScriptPluginConfig.json names: pauses the queue that its parameter names.
exec /usr/local/bin/appctl pause "$1"
