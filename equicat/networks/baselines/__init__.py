"""The networks that Allegro is compared with."""
