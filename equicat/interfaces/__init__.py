"""Models in other programs, and other programs' models here."""
