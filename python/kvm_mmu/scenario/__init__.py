"""The scenario language: operations as lines of JSON, the engines that run them, verification and workloads."""
