"""An old place; see docs/stability.md. The modules are in `lora_export.ondevice` now."""
