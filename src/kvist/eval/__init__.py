"""What a way to keep the cache costs in quality, memory and time, against float32."""
