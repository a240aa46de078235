"""Wordings of questions that are in no training text: gallery/questions.py asks these."""

HELD_OUT = {
    "subject": (
        "What do you see here?", "What is in this one?", "So what is this?",
        "Tell me what it shows.", "What did the painter paint here?"),
    "description": (
        "Please describe it.", "Can you describe the picture?", "Tell me more about this painting.",
        "Give me a detailed description.", "Could you tell me about it?"),
    "composition": (
        "Where in this painting is the {subject}?", "Where does the subject stand?",
        "Where can you see the {subject}?", "Describe the composition of this picture.",
        "Where did the painter place the {subject}?"),
    "count": (
        "How many {xs} does it show?", "How many {xs} are shown?",
        "Tell me how many {xs} there are.", "Can you tell me how many {xs} you see?"),
    "presence": (
        "{is} there {any} here?", "Do you see {any} in this picture?", "Can we see {any}?",
        "Does it have {any}?"),
    "kind": ("Do you think it is {kind}?", "Would you say that this is {kind}?"),
    "style": (
        "What is its style?", "Describe the style of this picture.", "How was it made?",
        "Which technique was used here?", "What kind of image is this?"),
    "colours": (
        "What are its colours?", "Which colours does this picture have?", "Describe its colours.",
        "Tell me the colours of the painting.", "What colours can you see?"),
    "mood": (
        "What mood does this picture have?", "Which feeling does this painting evoke?",
        "Describe the mood of the painting.", "What is its atmosphere?",
        "How does the painting feel?"),
    "why": (
        "But why?", "Why do you feel so?", "Why is this painting so {mood}?",
        "What makes this picture {mood}?", "Why would you say so?"),
    "title": (
        "Suggest a title for this picture.", "Which title would you give it?",
        "Give this painting a title.", "Can you give it a title?"),
    "poem": (
        "Please write a poem about this painting.", "Could you make a short poem about it?",
        "Write me a poem.", "Can you make a poem of the picture?"),
    "page": (
        "Make me a web page for this picture.", "Create an HTML page for this painting.",
        "Build a website about it.", "Please write a web page about it."),
    "greeting": (
        "Hi, who are you?", "Hey there!", "Good afternoon.", "Hello, what can you do?",
        "Hello, can you help me?"),
    "unknown": (
        "Who is the painter?", "Who made this?", "Do you know who painted it?",
        "When was this painted?", "In which year was this made?", "What did it cost?",
        "Where was this picture painted?"),
    "both": (
        "Can you compare them?", "How do the two pictures differ?",
        "What are the differences between the two paintings?"),
    "which": ("Which of the two pictures is {kind}?", "Which painting is {kind}?"),
    "one": (
        "What is in the {nth} picture?", "Tell me about the {nth} picture.",
        "What does the {nth} painting show?"),
}
