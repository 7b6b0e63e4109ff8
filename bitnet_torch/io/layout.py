"""The names of files and formats that reading and writing a checkpoint share."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMATS = ("hf-packed", "hf-master")
