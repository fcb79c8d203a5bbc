"""What a campaign found, for people: text, figures, and one HTML page. Nothing is measured here."""
